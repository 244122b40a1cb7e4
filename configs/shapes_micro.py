# The embedded shapes set with a micro ViT from scratch: minutes on two CPU cores.
# Warm-up, switches and rates are scaled to the short run; the method is the released one.
model = dict(
    backbone="custom",
    vit=dict(patch_size=8, embed_dim=128, depth=6, num_heads=4, mlp_ratio=3.0),
    weights="none",
    num_classes=7,
    decoder_width=64,
    token_init="perturbed",
    regularising_std=0.02,
)
data = dict(crop=112, augment="voc", min_area=0.5, workers=0)
cam = dict(scales=(1.0, 0.5), late_after=300)
loss = dict(start=dict(cre=100, ure=100, ptc=100, seg=200, energy=200))
optim = dict(lr=5e-4, head_lr_scale=2.0, warmup=40, warmup_ratio=0.01)
train = dict(iterations=600, global_batch=16, log_every=20)
eval = dict(every=200, images=100)
checkpoint = dict(every=200)
inference = dict(size=112, scales=(1.0, 0.75, 1.25), segment_scales=(1.0, 1.25), batch=16)
