//go:build tools

// Package tools pins the programs that the interop tests build.
package tools

import _ "github.com/juanfont/headscale/cmd/headscale"
