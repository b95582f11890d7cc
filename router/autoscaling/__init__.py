"""How many instances there are: starting and stopping them through a provisioner."""
