//go:build inflight_static

package inflight

// #cgo LDFLAGS: -L${SRCDIR}/../../target/release -l:libinflight.a -lgcc_s -lm -ldl -lpthread
import "C"
