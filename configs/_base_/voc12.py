# PASCAL VOC 2012 as released: 20 classes, 448 px, 4 images an update, 20,000 updates.
# Every value that is not written here is the schema's default, which is the released VOC recipe.
precision = "fp32"  # as released, also on a GPU with bf16
model = dict(num_classes=20)
data = dict(crop=448, augment="voc")
train = dict(iterations=20000, global_batch=4)
# Training on masks: the whole network at the rates of stage one (not measured at this size).
stage_two = dict(segment=dict(blocks=-1), train=dict(iterations=10000, global_batch=8))
