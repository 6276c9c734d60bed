"""The measured libraries, one module each. Importing a module fails if its library is absent.

The functions of a module are ``pixels(job)``, which yields (relative path, uint8 (3, H, W)) of
every photo; ``batches(job)``, which yields normalized float32 batches on the CPU; and
``evaluate(job, model, classes)``, which returns the number of images, top-1 and top-5. If
``job.training``, the first two are for one epoch of training, with random crops and flips.
``job.preprocessing`` and ``job.device`` are set.
"""
