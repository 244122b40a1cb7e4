# PASCAL VOC 2012 with DINOv2 ViT-S/14 at 224 px: a small-budget recipe, under an hour on two cores.
# The method is the released one. The starts are options: in a run this short the released ones
# leave class tokens tied, disturb the backbone's features and feed the classifier on artifact
# patches.
_base_ = ["_base_/voc12.py"]
model = dict(
    backbone="vit_small_patch14_dinov2",
    token_init="perturbed",
    token_noise=0.03,
    register_init="small",
    token_attention="shared",
    pooling="competitive",
    decoder_width=256,
)
data = dict(crop=224, min_area=0.5, jitter=0.0)
# 400 updates of the classifiers alone on features that are computed once.
head_warmup = dict(updates=400)
# Competitive CAMs are probabilities, low where unsure; the main CAM is the better one from the
# start.
cam = dict(scales=(1.0,), high=0.5, low=0.15, late_high=0.4, late_low=0.15, late_after=-1,
           background=0.2)
# DINOv2's features are long (norm 40): a higher temperature keeps CRE from looking at one patch.
loss = dict(temperature=2.0, start=dict(seg=20, energy=20))
# The backbone moves little: at a rate of 2e-5 the classification loss doubled in 30 updates.
optim = dict(lr=4e-6, head_lr_scale=100.0, token_lr_scale=4.0, warmup=10, warmup_ratio=0.01)
train = dict(iterations=140, global_batch=8, log_every=10)
eval = dict(every=0, images=100)
checkpoint = dict(every=35)
inference = dict(size=224, scales=(1.0,), segment_scales=(1.0,), batch=8)
