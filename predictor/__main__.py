"""python -m predictor."""

from predictor.service import main

raise SystemExit(main())
