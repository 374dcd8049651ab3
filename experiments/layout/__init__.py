"""The layout model that ships: trained with V-COCO's interactions, measured on V-COCO's and
HICO-DET's test images.
"""
