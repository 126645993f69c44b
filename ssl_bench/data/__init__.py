"""Images: where they come from, how they are split, and how batches of them are made. Importing this loads nothing."""
