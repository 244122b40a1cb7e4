# COCO 2014, ViT-B/16: the published log's recipe.
_base_ = ["_base_/coco14.py"]
model = dict(backbone="vit_base_patch16_224.augreg_in21k_ft_in1k")
