{{/* What values.schema.json cannot say, because it concerns several values at a time. */}}
{{- define "server.rules" -}}
{{- $settings := .Values.settings -}}
{{- range $name := list "DATABASE_URL" "API_TOKEN" "REQUEST_STATE_KEYS" -}}
{{- if hasKey $settings $name -}}
{{- fail (printf "settings.%s would be readable by everybody: put it into a Secret, and name that under secrets.%s." $name $name) -}}
{{- end -}}
{{- end -}}
{{- range $name, $_ := .Values.secrets -}}
{{- if hasKey $settings $name -}}
{{- fail (printf "%s is given twice, under settings and under secrets: leave one out." $name) -}}
{{- end -}}
{{- end -}}
{{- range $name := list "OAUTH_ISSUER" "OAUTH_AUDIENCE" -}}
{{- if and (hasKey $settings $name) (not (get $settings $name)) -}}
{{- fail (printf "settings.%s is empty: without it the server cannot tell whose tokens to accept, and does not start." $name) -}}
{{- end -}}
{{- end -}}
{{- $host := toString $settings.HTTP_HOST -}}
{{- if or (eq $host "localhost") (eq $host "::1") (hasPrefix "127." $host) -}}
{{- fail (printf "With settings.HTTP_HOST=%s nobody outside of the pod reaches the server, its probes included: leave it at 0.0.0.0 or ::." $host) -}}
{{- end -}}
{{- $workers := int (default 1 $settings.HTTP_WORKERS) -}}
{{- if and (gt $workers 1) (eq (toString .Values.resources.limits.memory) "640Mi") -}}
{{- fail (printf "resources.limits.memory is enough for one worker, not for settings.HTTP_WORKERS=%d: each needs as much, and more replicas do the same." $workers) -}}
{{- end -}}
{{- $several := or (.Values.autoscaling).enabled (gt (int .Values.replicas) 1) -}}
{{- if and .Values.persistence $several -}}
{{- fail "SQLite keeps its data in one file of one replica: replicas must be 1." -}}
{{- end -}}
{{- if and $several (eq (toString $settings.HTTP_STATELESS) "false") -}}
{{- fail "With settings.HTTP_STATELESS=false a session lives in one replica: it needs one replica and no autoscaling." -}}
{{- end -}}
{{- with .Values.autoscaling -}}
{{- if gt (int .minReplicas) (int .maxReplicas) -}}
{{- fail (printf "autoscaling.minReplicas (%d) is above autoscaling.maxReplicas (%d)." (int .minReplicas) (int .maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.host) -}}
{{- fail "ingress.enabled needs ingress.host, the name under which clients reach the server." -}}
{{- end -}}
{{- end -}}
