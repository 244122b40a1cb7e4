"""The network: a ViT with class tokens, GCR, the classifiers and the segmentation decoder."""
