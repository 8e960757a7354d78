"""One small file for each foreign layout of dictionaries."""
