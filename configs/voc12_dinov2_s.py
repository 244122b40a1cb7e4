# PASCAL VOC 2012 with DINOv2 ViT-S/14 at 224 px (stage one) and 336 px (seeds, stage two): a
# small-budget recipe for a laptop. The method is the released one. The starts are options: in a run
# this short the released ones leave class tokens tied, disturb the backbone's features and feed the
# classifier on artifact patches.
_base_ = ["_base_/voc12.py"]
precision = "auto"
model = dict(
    backbone="vit_small_patch14_dinov2",
    # Class tokens enter above nine blocks, which are run once: an update takes a third of the time.
    frozen_blocks=9,
    token_init="perturbed",
    token_noise=0.3,  # a token's own spread at that depth
    register_init="small",
    token_attention="shared",
    pooling="competitive",
    decoder_width=256,
)
data = dict(crop=224, min_area=0.5, jitter=0.0)
tokens = dict(views=1)
# 400 updates of the classifiers alone on features that are computed once. Without the second term
# the seed decides which classes take the background of their images (configs/README.md).
head_warmup = dict(updates=400, centre=0.1)
# Competitive CAMs are probabilities, low where unsure; the main CAM is the better one from the
# start.
cam = dict(scales=(1.0,), high=0.5, low=0.15, late_high=0.4, late_low=0.15, late_after=-1,
           background=0.2)
# DINOv2's features are long (norm 40): a higher temperature keeps CRE from looking at one patch.
# The decoder is left to stage two.
loss = dict(temperature=2.0, weights=dict(seg=0.0, energy=0.0))
# The backbone moves little: at a rate of 2e-5 the classification loss doubled in 30 updates.
optim = dict(lr=4e-6, head_lr_scale=100.0, token_lr_scale=4.0, warmup=10, warmup_ratio=0.01)
train = dict(iterations=280, global_batch=8, log_every=10)
eval = dict(every=0, images=100)
checkpoint = dict(every=70)
# Maps fill up over patches of similar features (configs/README.md has the measurements).
inference = dict(size=336, scales=(1.0,), segment_scales=(1.0,), batch=8, spread=4)
stage_two = dict(
    data=dict(crop=336),
    tokens=dict(views=2),
    segment=dict(blocks=0, stride=4),
    optim=dict(lr=1e-3, head_lr_scale=1.0, warmup=20),
    train=dict(iterations=600, global_batch=16),
    checkpoint=dict(every=300),
)
