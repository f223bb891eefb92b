package main

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	inflight "github.com/inflight-engine/inflight/bindings/go"
)

// A client that neither sends its request nor takes the answer for so long has gone.
const ioTimeout = 30 * time.Second

// server answers requests for one engine.
type server struct {
	engine    *inflight.Engine
	info      inflight.ModelInfo
	eosTokens map[uint32]bool
	modelName string
	keyHash   *[sha256.Size]byte // nil: no key is asked for.
	maxBody   int64
	timeout   time.Duration
	loopback  bool
	created   int64 // Unix time.
	stopping  atomic.Bool
	responses responseCounts
}

func newServer(engine *inflight.Engine, c *config, loopback bool) (*server, error) {
	info, err := engine.ModelInfo()
	if err != nil {
		return nil, err
	}
	eos, err := engine.EOSTokens()
	if err != nil {
		return nil, err
	}
	s := &server{
		engine: engine, info: info, eosTokens: map[uint32]bool{}, modelName: c.modelName, maxBody: c.maxBody,
		timeout: c.timeout, loopback: loopback, created: time.Now().Unix(),
	}
	for _, token := range eos {
		s.eosTokens[token] = true
	}
	if c.apiKey != "" {
		hash := sha256.Sum256([]byte(c.apiKey))
		s.keyHash = &hash
	}
	return s, nil
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", servePage)
	mux.HandleFunc("GET /healthz", s.health)
	mux.Handle("GET /metrics", s.withKey(s.metrics))
	mux.Handle("GET /v1/models", s.withKey(s.models))
	mux.Handle("GET /v1/models/{name...}", s.withKey(s.model))
	mux.Handle("POST /v1/completions", s.withKey(s.withJSON(s.completions)))
	mux.Handle("POST /v1/chat/completions", s.withKey(s.withJSON(s.chatCompletions)))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, &apiError{Code: http.StatusNotFound, Kind: "invalid_request_error",
			Message: fmt.Sprintf("there is no %s %s", r.Method, r.URL.Path)})
	})
	return s.responses.count(s.withHost(mux))
}

// withHost keeps other sites' pages out: a name that somebody has pointed at the loopback interface makes a
// browser send that page's requests here.
func (s *server) withHost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.loopback && !isLoopbackHost(r.Host) {
			writeError(w, &apiError{Code: http.StatusForbidden, Kind: "invalid_request_error",
				Message: fmt.Sprintf("the host %q is not this machine; use localhost or 127.0.0.1", r.Host)})
			return
		}
		next.ServeHTTP(w, r)
	})
}

func isLoopbackHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	address := net.ParseIP(strings.Trim(host, "[]"))
	return strings.EqualFold(host, "localhost") || (address != nil && address.IsLoopback())
}

// withKey asks for the key, where there is one. Hashes are of one length, so that comparing tells nothing.
func (s *server) withKey(next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key, isBearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		hash := sha256.Sum256([]byte(key))
		if s.keyHash != nil && (subtle.ConstantTimeCompare(hash[:], s.keyHash[:]) != 1 || !isBearer) {
			w.Header().Set("WWW-Authenticate", "Bearer")
			writeError(w, &apiError{Code: http.StatusUnauthorized, Kind: "invalid_request_error",
				Name: "invalid_api_key", Message: "the API key is missing or wrong; send it as a bearer token"})
			return
		}
		next(w, r)
	})
}

// withJSON limits the body. Asking for the type of JSON means that a browser lets no other site's page send it.
func (s *server) withJSON(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
		if err != nil || kind != "application/json" {
			writeError(w, &apiError{Code: http.StatusUnsupportedMediaType, Kind: "invalid_request_error",
				Message: "the body must be JSON; send the header Content-Type: application/json"})
			return
		}
		// Not every kind of writer has deadlines; then there is none.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(ioTimeout))
		r.Body = http.MaxBytesReader(w, r.Body, s.maxBody)
		next(w, r)
	}
}

func (s *server) health(w http.ResponseWriter, _ *http.Request) {
	err := s.engine.Err()
	switch {
	case s.stopping.Load():
		http.Error(w, "stopping", http.StatusServiceUnavailable)
	case err != nil:
		http.Error(w, "the engine has ended: "+err.Error(), http.StatusServiceUnavailable)
	default:
		fmt.Fprintln(w, "ok")
	}
}

// modelObject is a model as clients see it.
type modelObject struct {
	ID          string `json:"id"`
	Object      string `json:"object"`
	Created     int64  `json:"created"`
	OwnedBy     string `json:"owned_by"`
	MaxModelLen int    `json:"max_model_len"`
}

func (s *server) modelObject() modelObject {
	return modelObject{s.modelName, "model", s.created, "inflight", s.info.MaxModelLen}
}

func (s *server) models(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]any{"object": "list", "data": []modelObject{s.modelObject()}})
}

func (s *server) model(w http.ResponseWriter, r *http.Request) {
	if err := s.checkModel(r.PathValue("name")); err != nil {
		writeError(w, err)
		return
	}
	writeJSON(w, http.StatusOK, s.modelObject())
}

func (s *server) checkModel(name string) error {
	if name == s.modelName {
		return nil
	}
	return &apiError{Code: http.StatusNotFound, Kind: "invalid_request_error", Param: "model",
		Name: "model_not_found", Message: fmt.Sprintf("there is no model %q; this server has %q", name, s.modelName)}
}

// apiError is a failure in the shape of OpenAI's API.
type apiError struct {
	Code    int // HTTP status.
	Message string
	Kind    string
	Param   string
	Name    string
}

func (e *apiError) Error() string { return e.Message }

// MarshalJSON gives null, and not an empty text, for what does not apply.
func (e *apiError) MarshalJSON() ([]byte, error) {
	orNull := func(text string) any {
		if text == "" {
			return nil
		}
		return text
	}
	return json.Marshal(map[string]any{"error": map[string]any{
		"message": e.Message, "type": e.Kind, "param": orNull(e.Param), "code": orNull(e.Name)}})
}

func invalid(param, format string, values ...any) error {
	return &apiError{Code: http.StatusBadRequest, Kind: "invalid_request_error", Param: param,
		Message: fmt.Sprintf(format, values...)}
}

func writeError(w http.ResponseWriter, err error) {
	failure := toAPIError(err)
	if failure.Code == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "1")
	}
	writeJSON(w, failure.Code, failure)
}

func writeJSON(w http.ResponseWriter, code int, value any) {
	w.Header().Set("Content-Type", "application/json")
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(ioTimeout))
	w.WriteHeader(code)
	// That the client has gone is known soon enough.
	_ = json.NewEncoder(w).Encode(value)
}

// toAPIError finds what a failure of the engine means to a client.
func toAPIError(err error) *apiError {
	var failure *apiError
	var tooLarge *http.MaxBytesError
	var status inflight.Status
	switch {
	case errors.As(err, &failure):
		return failure
	case errors.As(err, &tooLarge):
		return &apiError{Code: http.StatusRequestEntityTooLarge, Kind: "invalid_request_error",
			Message: fmt.Sprintf("the body is larger than %d bytes", tooLarge.Limit)}
	case errors.Is(err, inflight.ErrBusy):
		return &apiError{Code: http.StatusTooManyRequests, Kind: "requests", Name: "rate_limit_exceeded",
			Message: "the queue of requests is full; try again later"}
	case errors.Is(err, inflight.ErrPromptTooLong):
		return &apiError{Code: http.StatusBadRequest, Kind: "invalid_request_error",
			Name: "context_length_exceeded", Message: err.Error()}
	case isTimeout(err):
		return &apiError{Code: http.StatusGatewayTimeout, Kind: "server_error", Name: "timeout",
			Message: "the request took longer than this server allows"}
	case isCancelled(err), errors.Is(err, inflight.ErrClosed):
		return &apiError{Code: http.StatusServiceUnavailable, Kind: "server_error", Message: "the server is stopping"}
	case errors.As(err, &status) && status.Category() == inflight.CategoryArgument:
		return &apiError{Code: http.StatusBadRequest, Kind: "invalid_request_error", Message: err.Error()}
	default:
		return &apiError{Code: http.StatusInternalServerError, Kind: "server_error", Message: err.Error()}
	}
}
