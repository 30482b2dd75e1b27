PY := .venv/bin/python
UV := .venv/bin/uv
PROTOS := $(shell find protos/reprise -name '*.proto' 2>/dev/null | sort)
SITE = $(shell $(PY) -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')

.PHONY: protos
protos:
	rm -rf protos/gen && mkdir -p protos/gen build
	PATH=$(CURDIR)/.venv/bin:$$PATH $(PY) -m grpc_tools.protoc -I protos -I $(SITE) --python_out=protos/gen --grpc_python_out=protos/gen \
		--mypy_out=protos/gen --mypy_grpc_out=protos/gen $(PROTOS)
