"""From images to localisation maps and from maps to labels: CAM/LAM, regions, PAR."""
