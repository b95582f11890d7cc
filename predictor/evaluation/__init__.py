"""Length models: observations in, quantiles out. No I/O, no clock, no protobuf."""
