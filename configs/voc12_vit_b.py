# VOC 2012, ViT-B/16 pretrained on ImageNet-21k and 1k: the released recipe.
_base_ = ["_base_/voc12.py"]
model = dict(backbone="vit_base_patch16_224.augreg_in21k_ft_in1k")
