"""The field's benchmarks, equal to their official evaluators: HICO-DET, V-COCO, Open Images, Visual Genome.

One core (`overlap`, `matching`, `suppression`, `precision`, `scores`), and one page of rules per benchmark.
"""
