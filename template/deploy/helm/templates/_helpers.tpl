{{/* The release's name, which holds the chart's. */}}
{{- define "server.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{ .Release.Name }}
{{- else -}}
{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{/* What the settings' names begin with. */}}
{{- define "server.prefix" -}}
{{ .Chart.Name | upper | replace "-" "_" }}_
{{- end -}}

{{- define "server.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "server.labels" -}}
{{ include "server.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- define "server.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* A value as an environment variable has it; Helm itself would write 10000000 as 1e+07. */}}
{{- define "server.text" -}}
{{- if kindIs "string" . }}{{ . }}{{ else if kindIs "slice" . }}{{ join "," . }}{{ else }}{{ toJson . }}{{ end -}}
{{- end -}}

{{/* Under which names the server is called: the Service's, the Ingress's, and those of the settings. */}}
{{- define "server.allowedHosts" -}}
{{- $name := include "server.name" . -}}
{{- $hosts := list $name (printf "%s.%s" $name .Release.Namespace) (printf "%s.%s.svc" $name .Release.Namespace) -}}
{{- $hosts = append $hosts (printf "%s.%s.svc.cluster.local" $name .Release.Namespace) -}}
{{- if ne (int .Values.service.port) 80 -}}
{{- range $hosts }}{{ $hosts = append $hosts (printf "%s:%d" . (int $.Values.service.port)) }}{{ end -}}
{{- end -}}
{{- if .Values.ingress.enabled }}{{ $hosts = append $hosts .Values.ingress.host }}{{ end -}}
{{- with .Values.settings.HTTP_ALLOWED_HOSTS }}{{ $hosts = append $hosts (include "server.text" .) }}{{ end -}}
{{ join "," $hosts }}
{{- end -}}

{{/* The wait for the proxies, that for an outer balancer, the calls in flight, the cleanup (5 s), and a margin (5 s). */}}
{{- define "server.terminationGracePeriodSeconds" -}}
{{- $delay := .Values.settings.SHUTDOWN_DELAY_S | default 0 -}}
{{- $grace := hasKey .Values.settings "SHUTDOWN_GRACE_S" | ternary .Values.settings.SHUTDOWN_GRACE_S 10 -}}
{{ addf .Values.drainDelaySeconds $delay $grace 10 | ceil | int }}
{{- end -}}
