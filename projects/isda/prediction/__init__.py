"""A trained model applied to files: which images, where results go, videos and windows."""
