# PASCAL VOC 2012 with DINOv2 ViT-S/14 at 224 px: a small-budget recipe, minutes to an hour on CPU.
# The method is the released one; the starts are options, because released values leave class tokens
# tied and feed the classifier on artifact patches in a run this short (README, "Measured").
_base_ = ["_base_/voc12.py"]
model = dict(
    backbone="vit_small_patch14_dinov2",
    token_init="perturbed",
    register_init="small",
    token_attention="shared",
    pooling="competitive",
    decoder_width=256,
)
data = dict(crop=224, min_area=0.5, jitter=0.0)
head_warmup = dict(updates=400)
cam = dict(scales=(1.0,), high=0.5, low=0.15, cre_high=0.4, cre_low=0.15, late_high=0.5,
           late_low=0.2, background=0.25, late_after=200)
loss = dict(start=dict(seg=50, energy=50))
optim = dict(lr=2e-5, head_lr_scale=10.0, token_lr_scale=10.0, warmup=20, warmup_ratio=0.01)
train = dict(iterations=320, global_batch=8, log_every=10)
eval = dict(every=80, images=100)
checkpoint = dict(every=160)
inference = dict(size=224, scales=(1.0, 1.5), segment_scales=(1.0, 1.5), batch=8)
