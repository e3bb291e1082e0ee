{{- define "quorumail.name" -}}
{{- if contains "quorumail" .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-quorumail{{ end }}-operator
{{- end }}

{{- define "quorumail.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "quorumail.labels" -}}
app.kubernetes.io/name: quorumail
app.kubernetes.io/component: operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "quorumail.selector" -}}
app.kubernetes.io/name: quorumail
app.kubernetes.io/component: operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
