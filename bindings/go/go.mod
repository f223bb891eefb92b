module github.com/inflight-engine/inflight/bindings/go

go 1.25
