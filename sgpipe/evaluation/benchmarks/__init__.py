"""The benchmarks: HICO-DET, V-COCO, Open Images, Visual Genome."""
