"""What a model looked at on its way to an image's instances: collected by hooks, and drawn."""
