SHELL := /bin/bash
stubs:
	python -m grpc_tools.protoc -Iprotos --python_out=. --mypy_out=quiet:. --grpc_python_out=. --mypy_grpc_out=quiet:. protos/tidepipe/v1/*.proto
