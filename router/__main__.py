"""python -m router."""

from router.main import main

raise SystemExit(main())
