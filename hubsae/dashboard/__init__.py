"""A site of a dictionary to look at: static files, the same from a folder, a local server and a Space."""
