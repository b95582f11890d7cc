"""From finished answers to a model: fitting, judging, drawing, describing."""
