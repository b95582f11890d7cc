"""An instance without stages: sequences go in, requests to somebody else's server
and its tokens come out.
"""
