"""`ControllerService` and `TimelineService`: protobuf goes in and out, domain types pass on."""
