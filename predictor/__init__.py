"""The predictor: how long will an answer be? Its callers never depend on it."""
