"""python -m predictor."""

from predictor.main import main

raise SystemExit(main())
