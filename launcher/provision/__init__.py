"""Starting and stopping instances: on this machine, or on a Ray cluster, behind one service."""
