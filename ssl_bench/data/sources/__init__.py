"""Where images come from: embedded sets, torchvision's, class folders, Hugging Face parquet; one `load` each."""
