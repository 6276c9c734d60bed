"""The measured libraries, a module each; importing one fails where its library is absent.

Each has ``pixels(folder, preprocessing, device=)``: (relative path, uint8 (3, H, W)) of every
photo; ``batches(folder, preprocessing, workers=, batch_size=)``: normalized float32 batches on
the CPU; ``evaluate(folder, model, classes, preprocessing, workers=, batch_size=, device=)``:
images, top-1, top-5.
"""
