#!/usr/bin/env bash
# Checks the alerts: that they are rules, that each has a page and is tested by promtool, and that metrics are known.
set -euo pipefail
cd "$(dirname "$0")/.."
alerts=charts/quorumail/files/alerts.yaml
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cp "$alerts" tests/alerts/*.test.yaml "$scratch"
promtool check rules "$alerts" >/dev/null
(cd "$scratch" && promtool test rules ./*.test.yaml >out 2>&1) || { cat "$scratch/out" >&2; exit 1; }
status=0
wrong() { echo "$alerts: $*" >&2; status=1; }
for alert in $(sed -n 's/^ *- alert: //p' "$alerts"); do
  grep -Pzq "alertname: $alert\n *exp_alerts:" tests/alerts/*.test.yaml || wrong "no test lets $alert fire"
done
for page in $(sed -n 's/^ *runbook_url: RUNBOOKS\///p' "$alerts" | sort -u); do
  [ -f "docs/runbooks/$page" ] || wrong "docs/runbooks/$page is missing"
done
[ "$(grep -c '^ *- alert:' "$alerts")" = "$(grep -c '^ *runbook_url: RUNBOOKS/' "$alerts")" ] || wrong "an alert has no runbook_url"
for metric in $(grep -oE '\bquorumail_[a-z_]+' "$alerts" | sort -u); do
  grep -q "^| \`$metric\`" docs/reference/metrics.md || wrong "$metric is no metric of docs/reference/metrics.md"
done
python3 tests/dashboards.py || status=1
[ $status = 0 ] && echo "alerts and dashboards: ok"
exit $status
