package main

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"net/http"
)

//go:embed page.html
var page []byte

// pagePolicy lets the page run its own script and style, talk to this server, and nothing else.
var pagePolicy = fmt.Sprintf("default-src 'none'; connect-src 'self'; script-src '%s'; style-src '%s'; "+
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'", hashOf("script"), hashOf("style"))

// hashOf names the page's only element of this tag to the browser by what is in it.
func hashOf(tag string) string {
	_, rest, _ := bytes.Cut(page, []byte("<"+tag+">"))
	content, _, _ := bytes.Cut(rest, []byte("</"+tag+">"))
	hash := sha256.Sum256(content)
	return "sha256-" + base64.StdEncoding.EncodeToString(hash[:])
}

func servePage(w http.ResponseWriter, _ *http.Request) {
	header := w.Header()
	header.Set("Content-Type", "text/html; charset=utf-8")
	header.Set("Content-Security-Policy", pagePolicy)
	header.Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(page)
}
