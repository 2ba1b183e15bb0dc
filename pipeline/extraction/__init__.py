"""From images to keypoints and descriptors."""
