# MS COCO 2014: 80 classes. Values of the published log (2 ranks × 4 images, token loss in its mixed
# form, CRE 0.05, URE off), which differ from the released script's (CRE 0.1, URE 0.01, plain form,
# 2 images a rank).
precision = "fp32"  # as released, also on a GPU with bf16
model = dict(num_classes=80)
data = dict(crop=448, augment="coco")
cam = dict(
    scales=(1.0, 0.5, 0.75, 1.25, 1.5), high=0.65, low=0.25, background=0.45, late_after=50000)
loss = dict(
    temperature=0.1,
    mcl_form="mixed",
    weights=dict(cre=0.05, ure=0.0),
    start=dict(ptc=8000, cre=12000, ure=12000, seg=16000, energy=16000),
)
train = dict(iterations=80000, global_batch=8)
eval = dict(every=8000, images=5000)
checkpoint = dict(every=4000)
# Training on masks: the whole network at the rates of stage one (not measured at this size).
stage_two = dict(segment=dict(blocks=-1), train=dict(iterations=40000))
