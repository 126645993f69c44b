"""The web page: its tables, pictures and sections."""
