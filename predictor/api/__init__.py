"""`PredictorService`: protobuf goes in and out, observations and predictions pass on."""
