"""How close to their targets decoding sequences may be brought: margins of the slack that is spent."""

LATE_SHARE = 0.05
"""Of the sequences may find that decoding pauses for too long. Fewer than may miss their targets: many are
near the edge, and the next pause takes them along."""
PROMISED = 0.95
"""Share of a TPOT target that decoding is reckoned with: predictions err, and more requests come."""
