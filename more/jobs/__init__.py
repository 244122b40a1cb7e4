"""Work shared out to processes that may die: the driver, and how it finds the image at fault."""
