module github.com/inflight-engine/inflight/examples/go

go 1.25

require github.com/inflight-engine/inflight/bindings/go v0.0.0

replace github.com/inflight-engine/inflight/bindings/go => ../../bindings/go
