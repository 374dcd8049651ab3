"""Evaluators of HICO-DET, V-COCO, Open Images and Visual Genome; they give the same numbers as the
official ones.

The shared parts are `overlap`, `matching`, `suppression`, `precision` and `scores`. Each benchmark
has its own module.
"""
