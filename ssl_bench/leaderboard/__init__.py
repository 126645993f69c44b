"""Tables from run folders. Torch-free, and a pure function of the folders: it can be made again at any time."""
