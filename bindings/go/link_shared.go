//go:build !inflight_static

package inflight

// #cgo LDFLAGS: -L${SRCDIR}/../../target/release -linflight -Wl,-rpath,${SRCDIR}/../../target/release
import "C"
