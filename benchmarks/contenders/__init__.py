"""The measured libraries, one module each. Importing one fails if its library is absent.

Each has ``pixels(job)``: (relative path, uint8 (3, H, W)) of every photo; ``batches(job)``:
normalized float32 batches on the CPU; and ``evaluate(job, model, classes)``: the number of
images, top-1 and top-5. ``job.preprocessing`` and ``job.device`` are set.
"""
