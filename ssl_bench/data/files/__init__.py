"""Files of images, told apart by name and content without being decoded; what is known of them. Torch-free."""
