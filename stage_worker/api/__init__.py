"""`StageService`: plans and activations go in as protobuf, reports of steps come out."""
